"""What the commands do: one function a command, from its parsed arguments to its exit code. `cli` names them."""
