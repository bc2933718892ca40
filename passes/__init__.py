"""Graph-to-graph transformations, one file per pass; `pipeline.py` holds their order."""

if __name__ != "qcompiler.passes":
    raise ImportError("import this package as 'qcompiler.passes': the top-level folder is only its home in the repository")
