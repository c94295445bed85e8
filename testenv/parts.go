package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Part is something real a test may need.
type Part string

// The parts. DBOPS_REQUIRE names them.
const (
	PartDocker   Part = "docker"
	PartVault    Part = "vault"
	PartPostgres Part = "postgres"
	PartMariaDB  Part = "mariadb"
	PartMySQL    Part = "mysql"
	PartRedis    Part = "redis"
	PartValkey   Part = "valkey"
	// PartTools is the image the agent's worker stands on: pg_dump and friends.
	PartTools Part = "tools"
	// PartPromtool is Prometheus' program that checks metrics and rules.
	PartPromtool Part = "promtool"
)

// Parts lists every part.
func Parts() []Part {
	return []Part{PartDocker, PartVault, PartPostgres, PartMariaDB, PartMySQL, PartRedis, PartValkey, PartTools, PartPromtool}
}

// Require makes sure the parts are here, getting or making them if it can. A part
// that cannot be had skips the test, or fails it when DBOPS_REQUIRE names the part.
func Require(t TB, parts ...Part) {
	t.Helper()
	for _, part := range parts {
		if _, err := locate(part); err != nil {
			missing(t, part, err)
		}
	}
}

// Image returns the name of the container image that holds the part: the
// configured official one or the locally made one.
func Image(t TB, part Part) string {
	t.Helper()
	if part == PartDocker || part == PartVault || part == PartPromtool {
		t.Fatalf("testenv: %s is no image", part)
	}
	image, err := locate(part)
	if err != nil {
		missing(t, part, err)
	}
	return image
}

// Promtool returns the path of Prometheus' promtool.
func Promtool(t TB) string {
	t.Helper()
	path, err := locate(PartPromtool)
	if err != nil {
		missing(t, PartPromtool, err)
	}
	return path
}

// missing skips or fails the test; it does not return.
func missing(t TB, part Part, err error) {
	t.Helper()
	skipper, canSkip := t.(interface {
		Skipf(format string, args ...any)
	})
	if !canSkip || required(part, os.Getenv("DBOPS_REQUIRE")) {
		t.Fatalf("%s is required and missing: %v", part, err)
	}
	skipper.Skipf("%s is missing: %v", part, err)
}

// required reports whether the list, as in DBOPS_REQUIRE, names the part.
func required(part Part, list string) bool {
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if name == "all" || name == string(part) {
			return true
		}
	}
	return false
}

// variant is the part that a kind of server is started from: usual, or other when the
// environment variable names it.
func variant(t TB, variable string, usual, other Part) Part {
	t.Helper()
	switch chosen := Part(os.Getenv(variable)); chosen {
	case "", usual:
		return usual
	case other:
		return other
	default:
		t.Fatalf("testenv: %s is %q; it may be %s or %s", variable, chosen, usual, other)
		return ""
	}
}

// located remembers, for this process, where a part is or why it is not here.
type located struct {
	once  sync.Once
	where string
	err   error
}

var locations sync.Map // place to *located

// place is a part, of a Debian suite if that was said.
type place struct {
	part  Part
	suite string
}

// locate returns the image or path of the part, which a script gets or makes.
func locate(part Part) (string, error) { return locateIn(part, "") }

// locateIn is locate for the image of a Debian suite; "" leaves that to the
// environment.
func locateIn(part Part, suite string) (string, error) {
	if !slices.Contains(Parts(), part) {
		return "", fmt.Errorf("unknown part %q", part)
	}
	v, _ := locations.LoadOrStore(place{part, suite}, &located{})
	l, ok := v.(*located)
	if !ok {
		return "", fmt.Errorf("locate %s: unexpected %T", part, v)
	}
	l.once.Do(func() {
		switch part {
		case PartDocker:
			l.where, l.err = script("", "ensure-docker")
		case PartVault:
			l.where, l.err = script("", "ensure-vault")
		case PartPromtool:
			l.where, l.err = script("", "ensure-promtool")
		default:
			l.where, l.err = script(suite, "ensure-image", string(part))
		}
	})
	return l.where, l.err
}

// script runs one of our scripts and returns what it printed. A suite stands for
// what the environment says of it. Vault's build, the
// longest, is given 20 minutes: it may have to wait for the lock another holds.
func script(suite, name string, args ...string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(root, "scripts", name), args...)
	cmd.Dir = root
	if suite != "" {
		cmd.Env = append(os.Environ(), "DBOPS_SUITE="+suite)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A daemon the script starts keeps no pipe of ours, but its helpers might.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

const modulePath = "github.com/dbops-io/vault-plugin-secrets-dbops"

// moduleRoot is the top directory of this repository, found from the working
// directory: go test runs in the package's directory, go run where it is typed.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find module root: %w", err)
	}
	for {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil {
			line, _, _ := strings.Cut(string(content), "\n")
			if strings.TrimSpace(line) == "module "+modulePath {
				return dir, nil
			}
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find module root: the working directory is not inside the dbops repository")
		}
		dir = parent
	}
}
