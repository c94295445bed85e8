// Command dbops asks for database operations by way of Vault and follows them.
package main

import (
	"os"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/command"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(command.RunCLI(os.Args[1:], version)) }
