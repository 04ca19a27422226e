"""How long a model will take on chips: from what the compiler said of its nets, or from their shapes alone."""
