"""LIBERO: 130 tasks in five suites on robosuite."""
