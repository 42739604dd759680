"""Files that come with the package: experiments, studies and weights."""
