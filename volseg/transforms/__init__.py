"""The kitchen: MONAI dictionary transforms and the few that MONAI lacks. The currency is MetaTensor."""
