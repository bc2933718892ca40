"""What turns an integer graph into something that runs: numpy reference, LLVM object code, quantized ONNX."""

if __name__ != "qcompiler.backends":
    raise ImportError("import this package as 'qcompiler.backends': the top-level folder is only its home in the repository")
