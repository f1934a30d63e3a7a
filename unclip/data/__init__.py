"""The data stages: source, download, embed, index, and the loaders that training reads them with."""
