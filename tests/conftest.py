"""Two CPU devices for every test process, so that sharding can be compared with a single device."""

import jax

jax.config.update("jax_num_cpu_devices", 2)
