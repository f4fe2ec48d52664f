"""MetaWorld: 50 tasks of one arm on MuJoCo."""
