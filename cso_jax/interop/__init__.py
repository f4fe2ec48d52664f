"""Files of other frameworks, read without those frameworks."""
