"""Values and a template in, objects out."""
