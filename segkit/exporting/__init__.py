"""Models as files of other formats: ONNX and torch.export, with all steps from stored values to classes inside."""
