"""Exports: the only writers of SavedModels.

`saved_model`  a protected model as a TF Serving version folder
`rotate`       a new version of such a folder, without the model
`checks`       what must hold before and after
`xchacha20`    encrypted responses as TensorFlow operations
"""

from keras_encryip.export.rotate import rotate_codebook
from keras_encryip.export.saved_model import export_saved_model

__all__ = ["export_saved_model", "rotate_codebook"]
