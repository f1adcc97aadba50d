// Harness is the provider behind the proxies of the bench and the load in front of them.
//
//	harness provider ADDRESS
//	harness load MODE -target ADDRESS -header "x-api-key: KEY" ...
//
// Both are one thread with one epoll loop, no library and no allocation for a request, so that what is measured is the
// proxy between them: the bench calls the provider directly too, and shows what the two reach without a proxy.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

func main() {
	runtime.GOMAXPROCS(1)
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // it allocates next to nothing; a pause would look like the proxy's
	debug.SetMemoryLimit(2 << 30)
	if len(os.Args) >= 3 && os.Args[1] == "provider" {
		runProvider(os.Args[2])
		return
	}
	if len(os.Args) >= 3 && os.Args[1] == "load" {
		runLoad(os.Args[2], os.Args[3:])
		return
	}
	fmt.Fprintln(os.Stderr, "harness provider ADDRESS | harness load MODE [flags]")
	os.Exit(2)
}

// check ends the program: a bench that has lost a socket has no figures.
func check(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "harness: %s: %v\n", what, err)
		os.Exit(1)
	}
}
