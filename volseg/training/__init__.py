"""What the bundles' training needs and MONAI lacks. MONAI's engines and handlers do the rest."""
