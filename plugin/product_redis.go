package plugin

import (
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account/redis"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// redisPluginName is what Vault and Terraform call a connection to Redis or
// Valkey.
const redisPluginName = "redis-database-plugin"

func redisProduct() *product {
	return &product{
		engine:     wire.EngineRedis,
		title:      "Redis",
		pluginName: redisPluginName,
		details: map[string]detailKind{
			"host":                 detailString,
			"port":                 detailNumber,
			"username":             detailString,
			"password":             detailSecret,
			"tls":                  detailFlag,
			"insecure_tls":         detailFlag,
			"ca_cert":              detailString,
			"tls_certificate":      detailString,
			"private_key":          detailSecret,
			"tls_server_name":      detailString,
			"max_open_connections": detailNumber,
			"username_template":    detailString,
		},
		check:     checkRedis,
		locate:    locateRedis,
		open:      openRedis,
		preset:    expandRedis,
		usernames: usernameRule{upper: true, display: 64, role: 64, random: 20},
		creation:  []string{redis.DefaultCreation},
	}
}

// checkRedis asks for what Vault's engine asks for.
func checkRedis(stored storedConnection) error {
	for _, key := range []string{"host", "username"} {
		if stored.detail(key) == "" {
			return invalidField(key, "is required")
		}
	}
	if stored.number("port") == 0 {
		return invalidField("port", "is required")
	}
	if stored.secret("password").Empty() {
		return invalidField("password", "is required")
	}
	return nil
}

func locateRedis(stored storedConnection) (location, error) {
	mode := "disable"
	switch {
	case stored.flag("tls") && stored.flag("insecure_tls"):
		mode = "require"
	case stored.flag("tls"):
		mode = "verify-full"
	}
	return location{Host: stored.detail("host"), Port: stored.number("port"), Database: "0", SSLMode: mode}, nil
}

func openRedis(stored storedConnection) (account.Driver, error) {
	return redis.New(redis.Config{
		Host:        stored.detail("host"),
		Port:        stored.number("port"),
		Username:    stored.detail("username"),
		Password:    stored.secret("password"),
		TLS:         stored.flag("tls"),
		InsecureTLS: stored.flag("insecure_tls"),
		CA:          stored.detail("ca_cert"),
		Certificate: stored.detail("tls_certificate"),
		PrivateKey:  stored.secret("private_key"),
		ServerName:  stored.detail("tls_server_name"),
		MaxSessions: stored.maxSessions(),
	})
}
