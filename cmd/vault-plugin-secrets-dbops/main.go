// Command vault-plugin-secrets-dbops is the secrets engine as an external plugin
// of HashiCorp Vault. Vault starts it; it serves every mount from one process.
package main

import (
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	sdkplugin "github.com/hashicorp/vault/sdk/plugin"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// version is set at build time with -ldflags "-X main.version=…".
var version = "dev"

func main() {
	// JSON keeps the level on the way through Vault.
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: wire.NewRedactingWriter(os.Stderr), JSONFormat: true})
	meta := &api.PluginAPIClientMeta{}
	if err := meta.FlagSet().Parse(os.Args[1:]); err != nil {
		logger.Error("read arguments", "error", err)
		os.Exit(1)
	}
	err := sdkplugin.ServeMultiplex(&sdkplugin.ServeOpts{
		BackendFactoryFunc: plugin.FactoryFor(version),
		TLSProviderFunc:    api.VaultPluginTLSProvider(meta.GetTLSConfig()),
		Logger:             logger,
	})
	if err != nil {
		logger.Error("plugin stopped", "error", err)
		os.Exit(1)
	}
}
