"""A real Kubernetes on one machine, for the tests: `python -m cluster.testbed up` and `down`.

Built and run without a container engine and without an image registry: the components come from Go modules (`binaries.py`),
images from the Dockerfiles (`images.py`), containers from Debian's containerd, one a node (`nodes.py`). Everything of
it lies under one folder (`place.py`), listens on addresses of its own, and is found and cleared by `remains.py`,
however it ended. There is one testbed a machine.
"""
