"""From a checkpoint to a bundle: sources, restartable stages, vendor tools, bundles."""
