"""What a recipe is, and the techniques that make low precision work: loss scaling, master weights, looking at underflow."""
