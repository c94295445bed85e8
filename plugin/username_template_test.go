package plugin

import (
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Whatever the caller is called, the name fits and its random part is whole.
func TestUsernameTemplate_RandomPartStays(t *testing.T) {
	t.Parallel()
	rule := postgresProduct().usernames
	hostile := []string{"", "alice", strings.Repeat("x", 500), strings.Repeat("ä\"';$ ", 50), "{{random 3}}", "<no value>"}
	for text, want := range map[string]string{
		`v-{{.DisplayName}}-{{.RoleName}}-{{random 20}}`:                                                                        `-[A-Za-z0-9]{20}$`,
		`{{.DisplayName}}-{{random 12 | uppercase}}-{{.RoleName}}`:                                                              `-[A-Z0-9]{12}-`,
		`{{printf "v-%s-%s-%s-%s" (.DisplayName | truncate 8) (.RoleName | truncate 8) (random 20) (unix_time) | truncate 63}}`: `-[A-Za-z0-9]{20}-[0-9]{10}$`,
		`{{printf "%s-%s-%s" .DisplayName .EntityName (random 20) | truncate 40}}`:                                              `-[A-Za-z0-9]{20}$`,
		`{{.DisplayName}}-{{uuid}}`:                                             `-[0-9a-f-]{36}$`,
		`{{.DisplayName}}-{{random 20 | sha256 | truncate 20}}`:                 `-[0-9a-f]{20}$`,
		`{{index .EntityMetadata "team"}}{{.EntityMetadata.team}}_{{random 8}}`: `_[A-Za-z0-9]{8}$`,
	} {
		for _, who := range hostile {
			parsed, err := parseUsernameTemplate(text)
			require.NoError(t, err, text)
			seen := map[string]bool{}
			for range 20 {
				name, err := parsed.name(usernameData{DisplayName: who, RoleName: who, EntityName: who}, rule)
				require.NoError(t, err, "%s with %q", text, who)
				require.LessOrEqual(t, len(name), 63)
				require.Regexp(t, want, name)
				require.False(t, seen[name])
				seen[name] = true
			}
		}
	}
}

func TestUsernameTemplate_RefusedWhenNothingHelps(t *testing.T) {
	t.Parallel()
	rule := postgresProduct().usernames
	for _, text := range []string{
		strings.Repeat("x", 60) + `{{random 20}}`,
		`{{printf "%s-%s" "` + strings.Repeat("y", 30) + `" (random 20) | truncate 35}}`,
	} {
		parsed, err := parseUsernameTemplate(text)
		require.NoError(t, err)
		_, err = parsed.name(usernameData{DisplayName: "alice"}, rule)
		var refusal *wire.Error
		require.ErrorAs(t, err, &refusal)
		require.Equal(t, "username_template", refusal.Field)
	}
	for _, text := range []string{`{{`, `{{.Nonsense}}`, `{{nonsense 3}}`} {
		_, err := parseUsernameTemplate(text)
		require.Error(t, err)
	}
}

// What Vault knows of the caller reaches the name, and cannot leave its quotes.
func TestUsernameTemplate_Identity(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	m.System().(*logical.StaticSystemView).EntityVal = &logical.Entity{
		ID: "entity-alice", Name: `ali"ce'; --`, Metadata: map[string]string{"cost": "42"},
		Aliases: []*logical.Alias{{MountAccessor: "auth_userpass_1a2b", Name: "alice", Metadata: map[string]string{"team": `$$;\`}}},
	}
	m.must(logical.UpdateOperation, "config/prod", map[string]any{
		"username_template": `{{.EntityName}}_{{.EntityMetadata.cost}}_{{.Aliases.auth_userpass_1a2b.Name}}_{{.Aliases.auth_userpass_1a2b.Metadata.team}}_{{.Aliases.auth_userpass_1a2b.Metadata.none}}_{{random 8}}`,
	})
	response := m.must(logical.ReadOperation, "creds/app", nil)
	username := response.Data["username"].(string)
	require.Regexp(t, `^ali"ce'; --_42_alice_\$\$;\\__[A-Za-z0-9]{8}$`, username)
	_, err := login(t, p, username, response.Data["password"].(string))
	require.NoError(t, err)
	_, err = m.revoke(response.Secret)
	require.NoError(t, err)

	m.must(logical.UpdateOperation, "config/prod", map[string]any{"username_template": `x{{.Aliases.auth_ldap_9.Name}}{{.Aliases.auth_ldap_9.Metadata.team}}{{random 20}}`})
	require.Regexp(t, `^x[A-Za-z0-9]{20}$`, m.must(logical.ReadOperation, "creds/app", nil).Data["username"])
	_, err = m.as("", "creds/app")
	require.NoError(t, err, "a token without an entity has no aliases")
}
