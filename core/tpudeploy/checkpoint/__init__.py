"""Reading published checkpoints tensor by tensor; nothing in them is executed, nothing beside them is written."""
