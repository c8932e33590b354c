"""Tables, plots and the report, drawn from run records alone; nothing here needs torch."""
