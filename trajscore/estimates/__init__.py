"""How sure we are: bootstrap over prompts, shrinkage, correlation, comparison of groups, sample sizes. numpy in and out."""
