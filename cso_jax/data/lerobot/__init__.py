"""LeRobot data sets of version 3, read and written without torch, and what turns our episode files into them."""
