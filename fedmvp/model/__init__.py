"""The frozen CLIP tower, the PromptFormer trained beside it, and everything cached between the two."""
