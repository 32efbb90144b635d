"""The checkable quality of an answer: the ground truth that every simulated judgement and every claim rests on.

A *rubric* says which facts a good answer states, which errors it avoids, how long it is, which format it has, and
whether it should answer at all. :func:`grade` turns a rubric and an answer into a utility from 1 to 10, and
:func:`find` gives the rubric of a conversation that this project wrote.
"""

from starling_nb.rubric.grading import Grade, RubricError, grade
from starling_nb.rubric.lookup import UnknownPrompt, find, find_row

__all__ = ["Grade", "RubricError", "UnknownPrompt", "find", "find_row", "grade"]
