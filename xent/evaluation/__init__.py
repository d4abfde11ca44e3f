"""`xent evaluate`: the loss, perplexity and accuracy of logits and labels that may be larger than the memory."""
