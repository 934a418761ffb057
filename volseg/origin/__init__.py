"""Did the tumour start in the lung? Lesions and their CT enter; a probability per lesion and per patient leaves.

features -> head (a logit per lesion) -> patients (a logit per patient) -> calibration -> frozen (one JSON document).
Lung-origin head after Zhao et al., J Bone Oncol 2024;48:100637. Knows no network, no bundle, no file.
"""
