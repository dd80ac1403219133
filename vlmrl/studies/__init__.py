"""What is about one paper: the jobs of a study, tables and claims."""
