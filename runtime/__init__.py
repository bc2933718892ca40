"""Loading and running compiled programs; needs numpy and the standard library only."""

if __name__ != "qcompiler.runtime":
    raise ImportError("import this package as 'qcompiler.runtime': the top-level folder is only its home in the repository")
