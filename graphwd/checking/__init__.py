"""Is it right: a rewritten step beside the original and beside the formula."""
