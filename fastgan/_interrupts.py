"""Ctrl-C during the command line's imports ends it silently; ``__main__.py`` takes over.

The first module that is imported; it only imports builtin modules.
"""

import _signal  # type: ignore[import-not-found]  # signal imports others, which takes a while
import sys

_words = sys.orig_argv
if sys.argv[:1] == ["-m"]:  # Python is searching for the module to run
    _flag = _words[_words.index("fastgan") - 1] if "fastgan" in _words else ""
    _runs = "-mfastgan" in _words or (_flag[:1] == "-" and _flag[-1:] == "m")
else:
    _runs = sys.argv[:1] != [] and sys.argv[0].endswith(("/fastgan", "\\fastgan.exe"))
if _runs and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
