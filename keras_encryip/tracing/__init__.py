"""Finding out who leaked: what the owner does with a suspect's weights and outputs."""
