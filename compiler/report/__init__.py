"""Reports: records as JSON-able values, and tables, traces and drawings made from them."""
