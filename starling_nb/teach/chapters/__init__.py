"""The exercises, a module a chapter, in the order of the notebooks."""
