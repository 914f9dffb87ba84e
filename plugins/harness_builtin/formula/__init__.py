"""Images drawn from formulas, the backbones pretrained on them, and the command that pretrained them."""
