"""The page of `ppuc report`: one HTML file that shows the record of a run in a browser, without network or server."""
