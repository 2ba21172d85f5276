"""How workloads are measured; people import `asynctask.bench`."""
