"""`dreamactor reproduce`: the paper's chain from nothing to the end-to-end variant."""
