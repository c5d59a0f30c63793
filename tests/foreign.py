"""An array of an unknown library, as a user may have one."""

import numpy as np


class Foreign:
    """An array that supports DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __array_namespace__(self):
        return Namespace


class Namespace:
    from_dlpack = staticmethod(lambda array: Foreign(np.from_dlpack(array)))
