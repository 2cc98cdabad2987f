"""``harness report``: a finished run as one HTML file that opens from disk.

``page`` gathers what is shown, ``verdict`` puts it into words, ``exchanges`` holds the browser's data; beside
them lie the template, its style and its script. The file asks for nothing from the network, and holds no
harmful text unless it is told to.
"""

from harness.report.page import write

__all__ = ["write"]
