//go:build dbopsfault

package runner

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	edgeBegin = "begin"
	edgeEnd   = "end"
)

// fault obeys DBOPS_FAULT in builds made for tests (-tags dbopsfault): a list,
// separated by commas, of
//
//	kill:<step>:<begin|end>          the agent ends at once, as by SIGKILL
//	pause:<step>:<begin|end>:<file>  <file>.reached is made, then the agent waits
//	                                 until <file> exists
//
// Begin is after the intention was made durable and before the effect, end after
// the end was.
func fault(step wire.Step, edge string) {
	for _, each := range strings.Split(os.Getenv("DBOPS_FAULT"), ",") { //nolint:forbidigo // a seam of test builds only
		parts := strings.SplitN(each, ":", 4)
		if len(parts) < 3 || parts[1] != string(step) || parts[2] != edge {
			continue
		}
		switch {
		case parts[0] == "kill":
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				panic(fmt.Sprintf("fault: %v", err))
			}
			select {}
		case parts[0] == "pause" && len(parts) == 4:
			waitFor(parts[3])
		}
	}
}

func waitFor(path string) {
	if err := os.WriteFile(path+".reached", nil, 0o600); err != nil {
		panic(fmt.Sprintf("fault: %v", err))
	}
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
}
