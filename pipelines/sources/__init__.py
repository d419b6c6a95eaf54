"""Where images come from: named data sets, folders, archives, generators."""
