package plugin

import (
	"maps"
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// product is what the engine knows of one database product. All that differs
// between products stands in one; everything else asks it.
type product struct {
	engine wire.EngineType
	// title is what people call the product.
	title string
	// pluginName is what Vault and Terraform call a connection to it.
	pluginName string
	// keepsRecords says that the product's servers can keep records of logins.
	keepsRecords bool
	// operations says whether clones and the like can work on it.
	operations bool

	// details are the keys of config/ that belong to the product.
	details map[string]detailKind
	// check refuses details that the driver would misunderstand; the error is a
	// [wire.Error] naming the field.
	check func(stored storedConnection) error
	// locate tells where the details lead, without connecting. Its error is a
	// [wire.Error] naming the field.
	locate func(stored storedConnection) (location, error)
	// redactURL hides what is secret in connection_url; nil when there is none.
	redactURL func(url string) string
	// open makes the driver; it does not connect. What is wrong with the details
	// is an [account.FieldError]. Errors of the driver are kept free of the values
	// of secret details by the caller.
	open func(stored storedConnection) (account.Driver, error)

	usernames usernameRule
	// preset works out what a role's preset comes to on a connection; its error is
	// a [wire.Error] naming the field. Nil when the product has no presets.
	preset func(c *connection, r *role) (expansion, error)
	// creation are the statements of a role that has none; nil when a role must
	// have some.
	creation []string
}

// location is where a connection leads.
type location struct {
	Host     string
	Port     int
	Database string
	// SSLMode is libpq's word for how TLS is used.
	SSLMode string
	// HasPassword says that connection_url holds a password of its own.
	HasPassword bool
}

// usernameRule says how logins of a product are called.
type usernameRule struct {
	// limit is the longest name the server takes, in bytes when inBytes is set,
	// else in characters; 0 is no limit.
	limit   int
	inBytes bool
	// The default name is made of this mount's prefix, parts of the display name
	// and of the role's name, and random characters. A part of length 0 is left
	// out.
	noPrefix bool // the product's names are too short for it
	// upper makes names as Vault's engine makes those of Redis, with the mount's
	// id put in: V_<mount>_<display>_<role>_<random>_<unix time>, all upper case.
	upper                 bool
	display, role, random int
}

// sqlDetails are the keys that every SQL database has, and those of its product.
func sqlDetails(more map[string]detailKind) map[string]detailKind {
	details := map[string]detailKind{
		"connection_url":          detailString,
		"username":                detailString,
		"password":                detailSecret,
		"max_open_connections":    detailNumber,
		"max_idle_connections":    detailNumber,
		"max_connection_lifetime": detailDuration,
		"disable_escaping":        detailFlag,
		"username_template":       detailString,
		"tls_ca":                  detailString,
		"auth_type":               detailString,
		"service_account_json":    detailSecret,
		"use_private_ip":          detailFlag,
		"use_psc":                 detailFlag,
		detailSelfManaged:         detailFlag,
	}
	maps.Copy(details, more)
	return details
}

// products are all that connections can lead to.
func products() []*product {
	return slices.Concat(
		[]*product{postgresProduct()},
		mysqlProducts(),
		[]*product{redisProduct()},
	)
}

// productOf returns the product of a plugin_name, or an error naming the field.
func productOf(pluginName string) (*product, error) {
	if pluginName == "" {
		return nil, invalidField("plugin_name", "is required")
	}
	for _, p := range products() {
		if p.pluginName == pluginName {
			return p, nil
		}
	}
	return nil, invalidField("plugin_name", "%q is not supported; supported are %s", pluginName, strings.Join(pluginNames(), ", "))
}

// pluginNames are the supported values of plugin_name.
func pluginNames() []string {
	var names []string
	for _, p := range products() {
		names = append(names, p.pluginName)
	}
	slices.Sort(names)
	return names
}

// secrets are the values of secret details.
func (s storedConnection) secrets() []wire.Secret {
	secrets := make([]wire.Secret, 0, len(s.Secrets))
	for _, value := range s.Secrets {
		secrets = append(secrets, wire.NewSecret(value))
	}
	return secrets
}
