"""What all experiments share: runs and their workdirs, variants, results, tables, plots."""
