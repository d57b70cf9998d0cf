"""How large and how fast an exported model is, beside what other runtimes make of the same model."""
