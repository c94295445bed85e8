package plugin

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-secure-stdlib/base62"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Names of logins. The default is
//
//	dbops-<mount id>-<part of the display name>-<part of the role>-<random>
//
// with parts as long as the product's [usernameRule] says, so that the server's
// limit never cuts the random part. The mount id tells our logins from those of
// another mount or another Vault on the same server.
const mountIDLength = 8

// mountEntry is the entry under [keyMount].
type mountEntry struct {
	ID string `json:"id"`
}

// mountID returns the id in the names of this mount's logins, made when the mount
// is first used.
func (b *backend) mountID(ctx context.Context, s logical.Storage) (string, error) {
	if id := b.accounts.mountID.Load(); id != nil {
		return *id, nil
	}
	b.accounts.mountMu.Lock()
	defer b.accounts.mountMu.Unlock()
	stored, err := getStored[mountEntry](ctx, s, keyMount)
	if err != nil {
		return "", err
	}
	if stored == nil {
		id, err := randomName(mountIDLength)
		if err != nil {
			return "", err
		}
		stored = &mountEntry{ID: id}
		if err := putStored(ctx, s, keyMount, stored); err != nil {
			return "", err
		}
	}
	b.accounts.mountID.Store(&stored.ID)
	return stored.ID, nil
}

// randomName returns n random lower case letters and digits.
func randomName(n int) (string, error) {
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567" // 32: no bias
	raw := make([]byte, n)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("make id: %w", err)
	}
	for i := range raw {
		raw[i] = alphabet[raw[i]%byte(len(alphabet))]
	}
	return string(raw), nil
}

// usernamePrefix begins the default names of a mount's logins on most products.
func usernamePrefix(mountID string) string { return "dbops-" + mountID + "-" }

// prefix begins the default names of a mount's logins on the product.
func (r usernameRule) prefix(mountID string) string {
	if r.upper {
		return "V_" + strings.ToUpper(mountID) + "_"
	}
	return usernamePrefix(mountID)
}

// username makes the name of a new login.
func (b *backend) username(ctx context.Context, s logical.Storage, c *connection, displayName, roleName, entityID string) (string, error) {
	id, err := b.mountID(ctx, s)
	if err != nil {
		return "", err
	}
	custom := c.detail("username_template")
	if custom == "" {
		return c.product.usernames.name(id, displayName, roleName, b.now())
	}
	parsed, err := parseUsernameTemplate(custom)
	if err != nil {
		return "", err
	}
	data := usernameData{DisplayName: displayName, RoleName: roleName, MountID: id}
	if err := b.usernameIdentity(custom, entityID, &data); err != nil {
		return "", err
	}
	name, err := parsed.name(data, c.product.usernames)
	if err != nil {
		return "", err
	}
	if name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return "", invalidField("username_template", "made a name that is empty or holds a control character")
	}
	return name, nil
}

// name makes the default name of a login.
func (r usernameRule) name(mountID, displayName, roleName string, now time.Time) (string, error) {
	random, err := base62.Random(r.random)
	if err != nil {
		return "", fmt.Errorf("make user name: %w", err)
	}
	if r.upper {
		return r.upperName(mountID, displayName, roleName, random, now), nil
	}
	var name string
	if !r.noPrefix {
		name = r.prefix(mountID)
	}
	if part := namePart(displayName, r.display); part != "" {
		name += part + "-"
	}
	if part := namePart(roleName, r.role); part != "" {
		name += part + "-"
	}
	return name + random, nil
}

// upperName is a name in upper case; nothing is cut from its random part.
func (r usernameRule) upperName(mountID, displayName, roleName, random string, now time.Time) string {
	parts := make([]string, 0, 4)
	for _, part := range []string{
		namePart(displayName, r.display), namePart(roleName, r.role), random, strconv.FormatInt(now.Unix(), 10),
	} {
		if part != "" {
			parts = append(parts, strings.ToUpper(part))
		}
	}
	return r.prefix(mountID) + strings.Join(parts, "_")
}

// fits reports whether the server takes a name as it is.
func (r usernameRule) fits(name string) bool {
	length := utf8.RuneCountInString(name)
	if r.inBytes {
		length = len(name)
	}
	return r.limit == 0 || length <= r.limit
}

// String says the limit.
func (r usernameRule) String() string {
	if r.inBytes {
		return fmt.Sprintf("%d bytes", r.limit)
	}
	return fmt.Sprintf("%d characters", r.limit)
}

// namePart shortens text for a user name and replaces what needs quoting.
func namePart(text string, length int) string {
	var b strings.Builder
	for _, c := range text {
		if b.Len() == length {
			break
		}
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
			b.WriteRune(c)
		default:
			b.WriteByte('-')
		}
	}
	return b.String()
}

// passwordLength gives about 166 bits, beyond the fixed start.
const passwordLength = 32

// newPassword makes a password by the named policy. Without one it has upper and
// lower case letters, digits and a dash, as Vault's own engine makes them.
func (b *backend) newPassword(ctx context.Context, policy string) (wire.Secret, error) {
	if policy == "" {
		random, err := base62.Random(passwordLength - len("A1a-"))
		if err != nil {
			return wire.Secret{}, fmt.Errorf("make password: %w", err)
		}
		return wire.NewSecret("A1a-" + random), nil
	}
	password, err := b.System().GeneratePasswordFromPolicy(ctx, policy)
	if err != nil {
		return wire.Secret{}, invalidField("password_policy", "policy %q does not exist or makes no password", policy)
	}
	return wire.NewSecret(password), nil
}
