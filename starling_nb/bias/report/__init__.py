"""The report on a judge's positional bias: rankings from a file or a run, measured in every way, as pages."""

from starling_nb.bias.report.findings import Findings
from starling_nb.bias.report.loading import load
from starling_nb.bias.report.writing import measure, write

__all__ = ["Findings", "load", "measure", "write"]
