"""What training needs and no model file ever holds."""
