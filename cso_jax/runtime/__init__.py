"""What runs beside a robot: an exported policy, its server, a client, a control loop. Most of it needs no JAX."""
